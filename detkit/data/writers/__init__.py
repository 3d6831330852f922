"""Data sets written as files, a module a format with the same names:

write(folder, splits, categories, lost)  the annotations of all splits; counts in `lost` what the format cannot hold
picture_path(split, name)                where a picture goes, relative to the folder
settings(folder, splits, categories)     the section `data` of a configuration that reads it
ONE_FOLDER                               whether the pictures of all splits go into one folder
"""
