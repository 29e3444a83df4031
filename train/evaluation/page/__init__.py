"""The page of a run, or of several: one HTML file that needs no network, made from what is in the run folders.

Plots are drawn in the page by Vega-Lite (0.77 MB with Vega, which is in assets/). It is the smallest of the usual
choices: plotly's basic bundle has 1.19 MB, Bokeh 1.27 MB. The licences of both are beside them.
"""
