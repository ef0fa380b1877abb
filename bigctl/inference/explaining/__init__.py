"""Why a trained model answers as it does: what each token, pixel or column of an example adds to the answer."""
