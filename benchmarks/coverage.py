"""Do the estimates of `fl.estimate` have the mean and the intervals that they state? Populations whose Fisher is known.

    python benchmarks/coverage.py [--repetitions 300] [--samples 32 128 512] [--sizes 16 32 64] [--json FILE]

Each repetition draws samples, estimates the error of every structure, and compares it with the mean error of the same fits
against the Fisher of the population, written out. One line of JSON for each population, size, number of samples and structure,
written as it comes; a second run continues the file. The columns:

    numerator    mean of (estimate - truth) of ||F~ - F||^2 in standard errors: within 3 of zero
    difference   the same of the difference to the diagonal, in standard errors
    ratio        mean of estimate - truth of the relative error, in percent of the mean truth
    covered      share of the repetitions in which the 95 % interval holds the truth
    plug_in      mean of the plug-in error less the truth
    warned       share of repetitions with a warning of heavy tails
"""
