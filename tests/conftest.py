"""How does hypothesis look for counterexamples?

The same examples in every run, so that a change is red for its own sake and red for everybody. To search elsewhere and
longer: `pytest --hypothesis-profile=search tests/property`.
"""

from hypothesis import settings

settings.register_profile("kvrelay", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=5000, deadline=None)
settings.load_profile("kvrelay")
