"""What each kind of experiment adds to the shared loop; installed as `bigctl.recipes`."""
