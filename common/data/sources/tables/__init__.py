"""Tables of images as spreadsheets, data frames and hubs write them."""
