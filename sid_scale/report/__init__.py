"""Runs as a page to read: `sid-scale report RUN_DIR...`.

    read.py           a run folder as it is on the disk, whole or not
    measurements.py   what evaluations have measured, of generators and teachers
    teacher.py        what a run's teacher is, for people
    titles.py         what recorded quantities are called
    curves.py         records as series over images and hours, thinned for drawing
    plots.py          those as SVG that takes its colours from the page
    pictures.py       images as data: URIs
    neighbours.py     a generator's samples, and the real images nearest to them
    classes.py        the same class by class
    quantities.py     every recorded quantity as plots
    tables.py         a run in figures and words
    page.py           the page, out of `page.html` and `style.css`
    making.py         from run folders to the page's file
    command.py        the command line

Nothing here changes a run folder, and nothing on the page is fetched from anywhere.
"""
