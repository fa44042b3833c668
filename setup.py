"""The package map."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["edm_fast", "edm_fast.*"]) + ["edm_fast.kernels"],
    package_dir={"edm_fast.kernels": "kernels"},
    package_data={"edm_fast": ["assets/*"]},
)
