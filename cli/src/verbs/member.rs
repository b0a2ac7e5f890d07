//! `dhow member`: the control nodes of the cluster.

use crate::kube::{Global, Session, escape};
use crate::output;
use anyhow::{Context as _, bail};
use clap::Subcommand;
use dhow_cli_core::members;
use http::Method;
use serde_json::json;

/// Where the API has the members.
const MEMBERS: &str = "/dhow/v1/members";

/// What to do with members.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the members: a line each with its API address, its role, and how many entries it is behind
    List,
    /// Make a token for a new member, and print the command that starts it
    Add {
        /// The new member's name
        name: String,
        /// The new member only votes: it holds no objects
        #[arg(long)]
        witness: bool,
    },
    /// Remove a member; its data directory can be deleted afterwards
    Remove(Member),
    /// Let a learner vote
    Promote(Member),
}

#[derive(clap::Args)]
struct Member {
    /// The member's name or number
    name: String,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let session = global.session()?;
    match args.action {
        Action::List => {
            let answer = session.client.get(MEMBERS).await?;
            output::table(&members::member_rows(&answer));
        }
        Action::Add { name, witness } => add(&session, &name, witness).await?,
        Action::Remove(Member { name }) => {
            session.client.delete(&format!("{MEMBERS}/{}", escape(&name)), None).await?;
            output::line(format!("member \"{name}\" removed"));
        }
        Action::Promote(Member { name }) => {
            session.client.json(Method::POST, &format!("{MEMBERS}/{}/promote", escape(&name)), None).await?;
            output::line(format!("member \"{name}\" promoted"));
        }
    }
    Ok(())
}

async fn add(session: &Session, name: &str, witness: bool) -> anyhow::Result<()> {
    let answer = session.client.create(MEMBERS, &json!({"name": name, "witness": witness})).await?;
    let Some(token) = answer["token"].as_str() else { bail!("the server answered without a token") };
    let token: dhow_pki::token::JoinToken = token.parse().context("the server's token")?;
    let witness = if witness { " --witness" } else { "" };
    if answer["replaces"].is_u64() {
        output::note(format!("it takes the place of the control node \"{name}\", which nobody reaches"));
    }
    output::note("start the new member with this command; on another machine name the address to listen on by --bind");
    output::line(format!("dhow server --join {} --token {token} --name {name}{witness}", session.client.server()));
    Ok(())
}
