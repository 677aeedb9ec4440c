//! What does a Dockerfile say? Text becomes instructions; nothing here knows of images, and nothing is done.
//!
//! | module | question |
//! |---|---|
//! | [`source`] | where in the text is something, and how is it shown? |
//! | [`lex`] | what are the logical lines: directives, lines that go on, heredocs? |
//! | [`parse`] | how do lines become instructions? |
//! | [`mount`] | what does `RUN --mount` say? |
//! | [`lint`] | what is allowed, but hardly meant? |
//! | [`ast`] | what are instructions made of? |
//! | [`words`] | what does a word mean: quotes, escapes, variables? |

pub mod ast;
pub mod lex;
pub mod lint;
pub mod mount;
pub mod parse;
pub mod source;
pub mod words;
