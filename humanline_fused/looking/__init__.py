"""Looking at runs: their curves beside each other as a picture, and the tokens of one step as a page."""
