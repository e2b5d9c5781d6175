"""specrunner: does this inference engine still compute the right thing?"""

__version__ = "0.1.0.dev0"
