"""Growth of a lesion over time: curves, treatment, fits, forecasts and what-if. Times are days, volumes mm³, rates 1/day."""
