"""Faults in the report of a run: what it may show, and what a name may do to it."""

from functools import partial

from common.page import render
from server.reporting.run_page import class_table, clients_table, epsilon_so_far, rounds_csv, utility
from server.reporting.run_page.run_files import RunFiles
from tests.mutants.faults import planted, planted_value
from tests.server.reporting.run_page import test_class_table as by_class
from tests.server.reporting.run_page import test_epsilon_so_far as so_far
from tests.server.reporting.run_page import test_what_a_page_shows as report

planted(
    report.test_hostile_names_are_text_and_nothing_else,
    render._environment,
    {"a page does not escape names": ("autoescape=True", "autoescape=False")},
)
planted(
    partial(report.test_no_name_becomes_a_formula, name="  =1"),
    rounds_csv.csv_cell,
    {"a formula after spaces reaches a spreadsheet": ("value.lstrip().startswith(_FORMULA) or ", "")},
)
main_part = report.test_under_a_mechanism_the_main_part_has_nothing_that_only_a_simulation_sees
planted(
    main_part, utility.curves_section, {"curves of a simulation stand unboxed": ("files.hidden and exact", "False")}
)
planted(
    main_part,
    clients_table.clients_section,
    {"a simulation's accuracy by client stands unboxed": ('if not exact.get("simulation_only") else {}', "")},
)
planted_value(
    "what only a simulation sees counts as seen by all", main_part, RunFiles, "hidden", property(lambda _: False)
)
planted(
    so_far.test_each_round_costs_what_its_events_cost,
    epsilon_so_far._of_rounds,
    {"a round costs a step": ("event.steps // charged * rounds", "rounds")},
)
planted(
    by_class.test_figures_of_noised_counts_spread_as_the_noise_says,
    class_table._ratio,
    {"the noise of errors is left out of an interval": ("cells_of_errors * hits**2", "0 * hits**2")},
)
