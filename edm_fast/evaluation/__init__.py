"""How good samples are: the Frechet distance between image sets."""
