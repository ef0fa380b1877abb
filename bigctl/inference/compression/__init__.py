"""A trained model made smaller: `weights` rounds and prunes, `structured` takes whole parts out (`parts` knows where
they are, `sized` computes with what is left), `soup` averages; `calibration` sees what layers are given, `sensitivity`
what each of them minds, `compressed` makes a run of it, `pareto` holds several ways beside each other."""
