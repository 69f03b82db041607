"""What pyproject.toml cannot say: the kernel's library serves every Python from 3.10 on, but for free-threaded ones.

These have no limited API before 3.15, and setuptools refuses to build a wheel that claims it.
"""

import sysconfig

from setuptools import setup

limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {})
