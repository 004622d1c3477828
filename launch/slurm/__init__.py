"""`launch slurm`: rendering and submitting an sbatch script."""
