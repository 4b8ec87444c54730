"""The dynamics of optimization: a figure and checked claims for each section of the article."""
