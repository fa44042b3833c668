"""How good samples are (Frechet distance), how exact each implementation is (verify), and how fast (bench)."""
