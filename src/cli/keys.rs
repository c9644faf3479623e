//! `postern keys`: an API key and its secret, as a line for `[keys]`.

use postern::crypto::SecretRng;

pub fn execute() -> Result<(), String> {
    let mut secrets = SecretRng::system();
    println!("API{} = \"{}\"", secrets.id_chars(12), secrets.id_chars(44));
    Ok(())
}
