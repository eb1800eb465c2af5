"""Speed, size and accuracy of deployed models, of other tools' models, and of the simulation.

All but `weights` and `ppq_export` run without torch, in the environment of the other tools too.
"""
