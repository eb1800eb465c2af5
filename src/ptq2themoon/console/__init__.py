"""The command `ptq2themoon`: it writes a parameter file, calls Snakemake and shows what came out."""
