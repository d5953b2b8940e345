"""The model folder and the engine that turns texts into probabilities. No Ray in here."""
