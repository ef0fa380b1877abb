"""A trained model made smaller: `weights` rounds and prunes, `calibration` sees what layers are given, `compressed`
makes a run of it."""
