"""Descriptions of the tools for models: when to use a tool, what its answer means, and what to do next."""

from __future__ import annotations

from typing import Final

DESCRIPTIONS: Final[dict[str, str]] = {
    "create_workspace": (
        "Create this chat's development workspace from a template and wait until it is ready. Use it before anything "
        "that needs files or commands, if the chat has no workspace; call list_templates first to choose a template "
        "and read_template to see its parameters. `created: true`: a new workspace is ready. `status: already_exists`: "
        "the chat already has a running workspace; go on with it. `status: stopped`: call start_workspace. "
        "`validations` names each parameter to correct; call again with corrected values. Another `error` means that "
        "the build failed: tell the user, and retry only if the cause has changed. `agent_status` or "
        "`startup_scripts` mean that the workspace exists but is not fully ready."
    ),
    "start_workspace": (
        "Start this chat's stopped workspace, or retry one whose last build failed, and wait until it is ready. "
        "`started: true`: it runs; with `no_build: true` it ran already. An error that points to create_workspace "
        "means that there is nothing to start. `validations` names each parameter to correct. "
        "`parameters_reset` names parameters that the template no longer accepts and that now have their default."
    ),
    "stop_workspace": (
        "Stop this chat's workspace; its files are kept. Use it when the user wants to stop, or when a command tool "
        "says `next_step: stop_workspace`; then call start_workspace to go on. `stopped: true`: it is stopped."
    ),
    "list_templates": (
        "List the templates from which this chat may create a workspace, 10 a page. Use it before create_workspace; "
        "`query` searches names and descriptions. If `total_pages` is above `page`, ask for the next page."
    ),
    "read_template": (
        "Show a template's parameters and presets. Use it before create_workspace: a parameter with `required: true` "
        "and no `default` must be given, `options` lists the only valid values, and a parameter with `mutable: false` "
        "cannot be changed by start_workspace later."
    ),
    "execute": (
        "Run a shell command in the workspace. `status: exited`: it has ended; look at `exit_code` and `output`. "
        "`status: running`: it goes on after `wait_seconds`; continue with process_output, `after` set to `next`, and "
        "end it with process_signal. An error with `next_step` names the tool to call before you try again."
    ),
    "process_output": (
        "Read the output of a command that execute started, from byte `after`; set `wait_seconds` to wait for more "
        "instead of asking again and again. Continue with `after` set to `next` until `status` is `exited`."
    ),
    "process_input": (
        "Write to the input of a command that was started with `open_stdin` or `pty`. `written` is the number of bytes "
        "taken; send the rest again. `close: true` ends the input."
    ),
    "process_signal": (
        "Send a signal to a command: INT as Ctrl-C, TERM to end it, KILL if that does not help. `signaled: false`: it "
        "had ended already."
    ),
    "process_list": "List the commands that run or ran in the workspace, with their `exec_id` for the other tools.",
    "read_file": (
        "Read a file of the workspace. If `next` is present, the file goes on: ask again with `offset` set to it. "
        "`encoding: base64` marks content that is not text. Use list_files if you do not know the path."
    ),
    "write_file": (
        "Write a whole file, or append to one; it is written whole or not at all. To change a part of a file, use "
        "edit_file."
    ),
    "edit_file": (
        "Replace text in a file; all edits are made or none. Each `old` must occur exactly once, unless `all` is true; "
        "otherwise the error gives the line numbers, and you call again with more of the surrounding text."
    ),
    "list_files": (
        "List a directory, `depth` levels deep. If `next` is present there are more entries: ask again with `after` "
        "set to it. Names that begin with a dot need `hidden: true`."
    ),
}
