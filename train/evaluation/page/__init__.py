"""The page of one run or several: a single HTML file that works offline, made from the run folders.

Vega-Lite (0.77 MB with Vega, both in assets/) draws the plots in the page. It is the smallest of the usual choices:
plotly's basic bundle has 1.19 MB, Bokeh 1.27 MB. The licences of both are next to them.
"""
