"""From quantization parameters to an INT8 model that runtimes execute, checked against the simulation."""
