//! A control node alone, for trying clients by hand: `serve DIR [ADDRESS]`.

use dhow_server::{Config, Server};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: serve DIR [ADDRESS]")?;
    let address = args.next().unwrap_or_else(|| "127.0.0.1:0".to_owned()).parse()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let server = Server::start(Config::new(&dir, address)).await?;
        let path = std::path::Path::new(&dir).join("admin.kubeconfig");
        std::fs::write(&path, server.admin_kubeconfig())?;
        use std::io::Write;
        writeln!(std::io::stdout(), "ready: {} {}", server.url(), path.display())?;
        tokio::signal::ctrl_c().await?;
        server.stop().await;
        Ok(())
    })
}
