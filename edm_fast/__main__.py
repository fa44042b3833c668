"""python -m edm_fast VERB: the same program as the console script edm-fast."""

from edm_fast.cli import main

if __name__ == "__main__":
    main(prog_name="edm-fast")
