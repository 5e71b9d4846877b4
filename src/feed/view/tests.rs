//! Views against torchvision.
