//! The committed schema table is what its sources say.

#[test]
fn the_committed_table_is_fresh() {
    match xtask::schema::check() {
        Ok(_) => {}
        // The sources are crates that no build needs, so a machine without network may lack them.
        Err(error) if error.is::<xtask::schema::NoSources>() => {
            println!("SKIPPED: the schema table was not compared with its sources: {error:#}");
        }
        Err(error) => panic!("{error:#}"),
    }
}
