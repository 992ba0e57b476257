"""Execute the notebooks, build and check the site."""
