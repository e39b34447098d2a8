//! The provider a daemon was configured with, as one enum.
