//! Format 1: the bytes on disk. Pure: no I/O, no cryptography, no panics on any input.
//!
//! Everything an attacker can write is decoded here, so slices are never indexed and integers never cast blindly.
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub mod config;
pub mod header;
pub mod headers;
pub mod ids;
pub mod inline;
pub mod journal;
pub mod keks;
pub mod layout;
pub mod links;
pub mod map;
pub mod names;
pub mod view;
