"""One file per head: the network, its `Outputs`, its criterion, its postprocess, in that order."""
