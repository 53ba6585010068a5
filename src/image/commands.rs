//! What launch commands may not mean as they are written.

/// Names that the shell of a launch command runs as programs though they are probably variables: `$(NAME)`, and the same
/// between backquotes. `is_variable` knows the variables of the image.
///
/// Recipes of other tools replace `$(NAME)` themselves. The shell says that there is no such program, puts nothing in its
/// place, and goes on.
pub(crate) fn variables_run_as_programs(command: &str, is_variable: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut is_quoted = false;
    let mut rest = command;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = after;
        let substituted = match c {
            '\\' => {
                rest = after
                    .get(after.chars().next().map_or(0, char::len_utf8)..)
                    .unwrap_or_default();
                None
            }
            '"' => {
                is_quoted = !is_quoted;
                None
            }
            '\'' if !is_quoted => {
                rest = after.split_once('\'').map_or("", |(_, rest)| rest);
                None
            }
            '$' => after.strip_prefix('(').and_then(|after| after.split_once(')')),
            '`' => {
                let substituted = after.split_once('`');
                rest = substituted.map_or("", |(_, rest)| rest);
                substituted
            }
            _ => None,
        };
        let name = substituted.map(|(name, _)| name.trim()).unwrap_or_default();
        let may_be_name = clusterfile::names::is_env_name(name);
        // No program is called in capitals only.
        let is_capitals = name.len() > 1 && !name.contains(|c: char| c.is_ascii_lowercase());
        if may_be_name && (is_variable(name) || is_capitals) && !found.iter().any(|known| known == name) {
            found.push(name.to_string());
        }
    }
    found
}

/// What is told about one of them.
pub(crate) fn told(name: &str) -> String {
    format!(
        "the shell runs $({name}) as a program, and puts what that prints in its place; the variable is written ${{{name}}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_in_the_place_of_programs_are_found() {
        for (command, expected) in [
            ("echo name=$(NAME)", vec!["NAME"]),
            ("echo \"$(NAME)\" $( Other ) $(NAME)", vec!["NAME", "Other"]),
            ("kubectl create ns `NAME`; x=$(cat $(FILE))", vec!["NAME", "FILE"]),
            ("helm install --set a=$(REGISTRY_URL)/b", vec!["REGISTRY_URL"]),
            ("echo \"it's $(NAME)\"", vec!["NAME"]),
            ("echo '$(NAME)' \\$(NAME) \\`NAME\\`", vec![]),
            (
                "echo $NAME ${NAME} $((NAME + 1)) $(hostname) $(date +%s) $(id -u)",
                vec![],
            ),
            ("echo `a` Other `b` NAME `c`", vec![]),
            ("echo $(", vec![]),
            ("echo $() `` $(w) 'open", vec![]),
        ] {
            let is_variable = |name: &str| ["NAME", "Other"].contains(&name);
            assert_eq!(variables_run_as_programs(command, is_variable), expected, "{command}");
        }
    }
}
