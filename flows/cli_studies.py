"""The `alignflow studies` command."""


def studies() -> None:
    """The shipped studies; each runs at every scale: `alignflow run SCALE/STUDY`."""
    from rich.console import Console
    from rich.table import Table

    from flows.presets import scale_names, study_questions

    table = Table("study", "what it asks", box=None)
    for name, question in study_questions().items():
        table.add_row(name, question)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\nscales: {', '.join(scale_names())}; each alone runs its own ladder of methods")
