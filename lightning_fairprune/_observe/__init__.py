"""What the steps and validations of a fit show."""
