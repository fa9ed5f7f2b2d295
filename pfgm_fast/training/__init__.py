"""What a training step needs: perturbed data, targets, losses."""
