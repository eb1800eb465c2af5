# The study
