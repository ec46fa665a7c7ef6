//! The only folder that names `fuser`: translate, call, reply; an error is logged here, once.
