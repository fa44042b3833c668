"""Triton kernels, one file per op. Installed as edm_fast.kernels."""

# with the repository root on sys.path this folder would also answer to `import kernels`: a second copy of each kernel
if __name__ != "edm_fast.kernels":
    raise ImportError(f"this folder is edm_fast.kernels, not {__name__}; install the project (pip install -e .)")
