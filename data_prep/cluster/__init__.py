"""Tasks on a Ray cluster in place of processes of one machine; ray_workers.py alone imports ray."""
