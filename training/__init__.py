"""Fits recurrent models to event logs; leaves a training run for keyfold.export."""
