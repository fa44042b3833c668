"""The equations of Karras et al. 2022, in torch and nothing else."""
