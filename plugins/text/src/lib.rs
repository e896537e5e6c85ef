//! Text as a reader sees it, and the way back to what was written.
//!
//! [`Plain`] makes look-alike forms plain: full-width letters, digits of other scripts, dashes and spaces of all kinds,
//! invisible characters, letters of another alphabet that look like Latin ones. [`Readings`] resolves escapes, such as those of JSON in a string. Both remember where everything
//! was, so that what is found in their text can be masked in the original. [`folded`] is for comparing, without a way back. [`words`] finds the
//! words of a list. [`unsettled`] says which end of a text may still read otherwise when more of it comes.
//!
//! It is a crate of its own since guests need it as well as the host.

pub mod encoded;
mod escapes;
mod fold;
mod plain;
mod readings;
mod runs;
mod unsettled;
pub mod words;

pub use fold::folded;
pub use plain::{Plain, latin, plain};
pub use readings::Readings;
pub use unsettled::unsettled;
