"""RMSprop from the beginning: `rmsprop learn` shows this notebook; every number in it is computed as it is read."""

import marimo

app = marimo.App(width="medium", app_title="RMSprop from the beginning")


@app.cell
def _():
    import inspect
    import re

    import marimo as mo
    import numpy as np

    import rmsprop
    from rmsprop.notebooks import figures, lessons, paths, starts
    from rmsprop.notebooks.surfaces import SURFACES
    from rmsprop.training.network import LESSONS

    def source(function):
        """The code that has just run, without its docstring."""
        code = re.sub(r'    """.*?"""\n', "", inspect.getsource(function), count=1, flags=re.DOTALL)
        return mo.md(f"```python\n{code}```")

    def show(figure):
        return mo.Html(figures.picture(figure))

    def table(heads, rows):
        lines = [heads, ["---"] * len(heads), *rows]
        return mo.md("\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines))

    def slider(values, value, label):
        return mo.ui.slider(steps=values, value=value, label=label, show_value=True)

    return LESSONS, SURFACES, figures, lessons, mo, np, paths, rmsprop, show, slider, source, starts, table


@app.cell
def _(mo, rmsprop, slider):
    descent_lr = slider([0.01, 0.03, 0.1, 0.2, 0.4, 0.5, 0.8, 0.95, 1.0, 1.05], 0.1, "learning rate lr")
    mo.vstack(
        [
            mo.md(f"""
            # RMSprop from the beginning

            A network learns by changing its weights a little, over and over. RMSprop is a rule for how much. This
            page builds it up from the simplest rule there is. It runs the package `rmsprop` {rmsprop.__version__}
            itself: move a slider, and what depends on it is computed anew.

            ## 1. Gradient descent

            Take one weight, x, and the loss x². The **gradient** is the slope of the loss, 2x: it points uphill. So
            step the other way, by the gradient times a **learning rate**, lr:

                x ← x − lr · 2x
            """),
            descent_lr,
        ]
    )
    return (descent_lr,)


@app.cell
def _(descent_lr, figures, lessons, mo, show, source):
    descended = lessons.descend(descent_lr.value)
    mo.vstack(
        [
            show(figures.descent(descended)),
            mo.md(f"""
            Every step multiplies x by 1 − 2 lr = {1 - 2 * descent_lr.value:.4g}. From {descended[0]:g},
            {len(descended) - 1} steps lead to x = {descended[-1]:.3g}. Small learning rates crawl; above 0.5 the
            steps overshoot; at 1 they no longer come closer, and beyond it they fly apart.
            """),
            source(lessons.descend),
        ]
    )


@app.cell
def units(mo, slider):
    unit = slider([1, 3, 10, 30, 100], 10, "the second x is larger by")
    mo.vstack(
        [
            mo.md("""
            ## 2. Two weights and two biases

            Now fit two straight lines at once, each with a weight and a bias: `y = weight · x + bias`. The gradient
            of the mean squared error (halved) is the mean of `error · x` for a weight and the mean of `error` for a
            bias.

            The second line's x may come in another unit: metres or centimetres, say. Then its gradients are so much
            larger.
            """),
            unit,
        ]
    )
    return (unit,)


@app.cell
def two_lines(figures, lessons, mo, rmsprop, show, source, unit):
    safe_lr = 1 / lessons.steepest(unit.value)
    plain_off = lessons.two_lines(lambda params: lessons.Descent(params, safe_lr), unit.value)
    rms_off = lessons.two_lines(lambda params: rmsprop.RMSprop(params, lr=0.02), unit.value)
    four = ("weight 1", "weight 2", "bias 1", "bias 2")
    lines_figure, lines_panels = figures.panels(f"gradient descent, lr = {safe_lr:.2g}", "RMSprop, lr = 0.02")
    for lines_panel, off in zip(lines_panels, (plain_off, rms_off), strict=True):
        figures.draw(lines_panel, dict(zip(four, off.T, strict=True)))
        lines_panel.set_yscale("log")
        lines_panel.set_ylim(1e-4, 10)
        lines_panel.set_xlabel("step")
    lines_panels[0].set_ylabel("distance from the goal")
    if plain_off[-1].max() > rms_off[-1].max():
        too_small = f"For the others that is too small: after {len(plain_off) - 1} steps weight 1 is still "
        too_small += f"{plain_off[-1, 0]:.2g} off."
    else:
        too_small = f"Here that is enough for the others too: after {len(plain_off) - 1} steps all four are within "
        too_small += f"{plain_off[-1].max():.2g}. With a second x larger by 10 it is not."
    mo.vstack(
        [
            show(lines_figure),
            mo.md(f"""
            Gradient descent has one learning rate for all, and it must be small enough for the steepest direction:
            beyond {2 * safe_lr:.2g} it flies apart. {too_small} RMSprop has all four within
            {rms_off[-1].max():.2g}, for it gives each number a learning rate of its own. (It does not come closer than
            about lr/2: section 9 returns to that.)

            The same function ran for both; only the optimizer differed:
            """),
            source(lessons.two_lines),
        ]
    )


@app.cell
def _(mo, slider):
    average_beta = slider([0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999], 0.9, "decay beta")
    mo.vstack(
        [
            mo.md("""
            ## 3. The moving average

            How large are the gradients of a weight? Average their squares, and let old ones fade:

                v ← beta · v + (1 − beta) · g²

            The square root of v is the **root mean square**, the RMS in RMSprop. The average reaches back over about
            1 / (1 − beta) steps. Grey is the size of one weight's noisy gradients; they are ten times larger for a
            while.
            """),
            average_beta,
        ]
    )
    return (average_beta,)


@app.cell
def _(average_beta, figures, lessons, mo, np, show, source, table):
    noisy = lessons.noisy_gradients()
    root = np.sqrt(lessons.mean_squares(noisy, average_beta.value))
    average_figure, (average_panel,) = figures.panels("one weight")
    average_panel.bar(np.arange(1, 121), np.abs(noisy), color="0.8", label="|g|")
    figures.draw(average_panel, {"√v": root}, x=np.arange(1, 121))
    average_panel.set_xlabel("step")
    sizes = (0.01, 1.0, 100.0, -0.5)
    slips = [(f"{g:g}", f"{lessons.moves(np.full(200, g))[-1]:.4g}", f"{lessons.slip(g):.4g}") for g in sizes]
    mo.vstack(
        [
            show(average_figure),
            mo.md(f"""
            It reaches back about {1 / (1 - average_beta.value):.4g} steps. It starts at 0, so at first it is too
            small: the very first step is 1 / √(1 − beta) = {1 / np.sqrt(1 - average_beta.value):.3g} times lr.
            Section 6 repairs that.

            **A common slip** is to average `g` where it should be `g²`. Here is a weight whose gradient has been g
            for a while, and what is taken off it, in units of lr:
            """),
            table(("g", "RMSprop", "with the slip"), slips),
            mo.md("""
            RMSprop takes lr off, or adds it if g is negative, whatever the size. With the slip the move depends on
            the size after all, as √g, and a negative gradient has no root: `nan`, not a number, and the weight is
            lost.
            """),
            source(lessons.slip),
        ]
    )


@app.cell
def _(mo, slider):
    drift_beta = slider([0.0, 0.5, 0.9, 0.99, 0.999], 0.9, "RMSprop's decay beta")
    mo.vstack(
        [
            mo.md("""
            ## 4. Rprop: only the sign counts

            Rprop, from 1993, ignores the size altogether. Each weight has a step size of its own, which grows by 1.2
            while the gradient keeps its sign, and halves when the sign changes:

                p ← p − sign(g) · step

            With all the data at every step that works very well. With **mini-batches**, small random parts of the
            data, it fails. Geoffrey Hinton's example: nine mini-batches give a weight the gradient +0.1 and the tenth
            gives −0.9. They add up to 0, so the weight should stay about where it is.
            """),
            drift_beta,
        ]
    )
    return (drift_beta,)


@app.cell
def _(drift_beta, figures, lessons, mo, rmsprop, show, source):
    def signs(params):
        return rmsprop.Rprop(params, lr=0.1, variant="rprop-", step_sizes=(0.1, 0.1))

    def corrected(params):
        return rmsprop.RMSprop(params, lr=0.1, beta=drift_beta.value, bias_correction=True)

    drifts = {
        "gradient descent": lessons.drift(lambda params: lessons.Descent(params, 0.1)),
        "sign of g, step 0.1": lessons.drift(signs),
        "Rprop": lessons.drift(lambda params: rmsprop.Rprop(params, lr=0.1, variant="rprop-")),
        f"RMSprop, beta = {drift_beta.value}": lessons.drift(corrected),
    }
    drift_figure, (drift_panel,) = figures.panels("a weight that should stay at 0")
    figures.draw(drift_panel, drifts)
    drift_panel.set_ylim(-30, 5)
    drift_panel.set_xlabel("mini-batch")
    ends = list(drifts.values())
    a_round = [(end[-1] - end[10]) / (len(end) // 10 - 1) for end in ends]
    mo.vstack(
        [
            show(drift_figure),
            mo.md(f"""
            The sign rule takes nine steps down and one up, and drifts by {a_round[1]:.2g} in each round of ten. Real
            Rprop is worse, because its steps grow in between: in {len(ends[2]) // 10} rounds it comes to
            {ends[2][-1]:.3g}.

            What went wrong? Rprop divides each gradient by its own size, which differs from one mini-batch to the
            next. RMSprop divides by the root mean square, which nearly stays the same: with beta = {drift_beta.value}
            it moves {a_round[3]:.2g} a round. (At beta = 0, v is just g², and RMSprop *is* the sign rule.)
            """),
            source(lessons.drift),
        ]
    )


@app.cell
def _(SURFACES, mo, paths, slider):
    surface_name = mo.ui.dropdown(list(SURFACES), value="quadratic valley", label="surface")
    walkers = mo.ui.multiselect(
        list(paths.WALKERS), value=["SGD", "Rprop", "RMSprop, tutorial", "RMSprop, tf1", "Adam"], label="optimizers"
    )
    walk_lr = slider([0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5], 0.05, "lr (Rprop: first step)")
    walk_sgd_lr = slider([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.02, 0.03, 0.1], 0.02, "lr of SGD")
    walk_beta = slider([0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999], 0.9, "beta")
    walk_epsilon = slider([1e-10, 1e-7, 1e-4, 0.01, 0.1, 1.0, 10.0], 1e-7, "epsilon")
    walk_momentum = slider([0.0, 0.3, 0.5, 0.8, 0.9, 0.95], 0.0, "momentum (SGD, RMSprop)")
    walk_steps = slider([20, 50, 100, 200, 500, 1000], 200, "steps")
    walk_centered = mo.ui.checkbox(label="centered")
    walk_corrected = mo.ui.checkbox(label="bias correction")
    mo.vstack(
        [
            mo.md("""
            ## 5. RMSprop

                v ← beta · v + (1 − beta) · g²
                p ← p − lr · g / √(v + epsilon)

            That is all: Rprop's idea, that a gradient's size says little, with an average over mini-batches in place
            of the full batch. In code:

            ```python
            optimizer = rmsprop.RMSprop([weights, bias], lr=0.001, beta=0.9, epsilon=1e-7)
            optimizer.step([gradient_of_weights, gradient_of_bias])  # changes weights and bias
            ```

            Choose a surface and let the optimizers walk, from the dot to the star. The names after RMSprop are
            *dialects*: how one library or paper writes the rule. With the sliders' numbers they differ in where
            epsilon goes (torch: outside the root), where v starts (tf1: at 1), where lr enters the momentum, and
            centering (graves).
            """),
            mo.hstack([surface_name, walkers], justify="start", gap=2),
            mo.hstack([walk_lr, walk_sgd_lr, walk_steps], justify="start", gap=2, wrap=True),
            mo.hstack([walk_beta, walk_epsilon, walk_momentum], justify="start", gap=2, wrap=True),
            mo.hstack([walk_centered, walk_corrected], justify="start", gap=2),
        ]
    )
    return (
        surface_name,
        walk_beta,
        walk_centered,
        walk_corrected,
        walk_epsilon,
        walk_lr,
        walk_momentum,
        walk_sgd_lr,
        walk_steps,
        walkers,
    )


@app.cell
def _(
    SURFACES,
    figures,
    mo,
    paths,
    show,
    surface_name,
    table,
    walk_beta,
    walk_centered,
    walk_corrected,
    walk_epsilon,
    walk_lr,
    walk_momentum,
    walk_sgd_lr,
    walk_steps,
    walkers,
):
    surface = SURFACES[surface_name.value]
    settings = paths.Settings(
        walk_lr.value,
        walk_beta.value,
        walk_epsilon.value,
        walk_momentum.value,
        walk_centered.value,
        walk_corrected.value,
        walk_sgd_lr.value,
    )
    trails = {name: paths.walk(surface, name, settings, walk_steps.value) for name in walkers.value}
    walk_colours = dict(zip(paths.WALKERS, figures.COLOURS, strict=True))
    trail_rows = [
        (name, f"({trail[-1][0]:.3g}, {trail[-1][1]:.3g})", f"{surface.loss(*trail[-1]):.3g}")
        if len(trail) > walk_steps.value
        else (name, f"flew apart after {len(trail) - 1} steps", "")
        for name, trail in trails.items()
    ]
    mo.vstack(
        [
            mo.md(f"**{surface_name.value}**: {surface.about}."),
            show(figures.walks(surface, trails, walk_colours)),
            table(("optimizer", "where it ends", "loss there"), trail_rows),
            mo.md("""
            Things to try: raise *lr of SGD* on the valley until it flies apart. Raise *epsilon* to 10 and RMSprop is
            all but gradient descent, with lr / √epsilon. Set *beta* to 0 for the sign rule. On the noisy bowl,
            compare Rprop with the others. On the saddle, see who gets away from the flat place first.

            SGD and Adam are PyTorch's own; Adam has its usual 0.9 and 0.999 and takes lr alone from here.
            """),
        ]
    )


@app.cell
def epsilons(mo, slider):
    epsilon = slider([1e-16, 1e-12, 1e-10, 1e-8, 1e-7, 1e-5, 1e-3], 1e-7, "epsilon, inside or outside")
    mo.vstack(
        [
            mo.md("""
            ## 6. The small print

            ### Epsilon, inside or outside the root

            Epsilon keeps the division from going wrong where v is 0. Some divide by √(v + epsilon), others by √v +
            epsilon. The same number means very different things: gradients much smaller than √epsilon (inside) or
            than epsilon (outside) move their weight less and less.
            """),
            epsilon,
        ]
    )
    return (epsilon,)


@app.cell
def small_gradients(epsilon, figures, lessons, mo, np, rmsprop, show, source):
    gradient_sizes = np.geomspace(epsilon.steps[0] / 100, 1, 361)
    taken = {
        mode: lessons.first_step(gradient_sizes, epsilon=epsilon.value, epsilon_mode=mode)
        for mode in ("inside", "outside")
    }
    half = {mode: lessons.half_step(gradient_sizes, move) for mode, move in taken.items()}
    epsilon_figure, (epsilon_panel,) = figures.panels("the step, in units of lr, of a steady gradient")
    figures.draw(epsilon_panel, taken, x=gradient_sizes)
    epsilon_panel.set_xscale("log")
    epsilon_panel.set_xlabel("size of the gradient")
    mo.vstack(
        [
            show(epsilon_figure),
            mo.md(f"""
            With epsilon = {epsilon.value:g}, half a step needs a gradient of {half["inside"]:.1e} inside the root and
            of {half["outside"]:.1e} outside. Libraries disagree on this and on more. What `rmsprop explain torch
            keras` says:
            """),
            mo.md(f"```text\n{rmsprop.explain('torch', 'keras')}\n```"),
            source(lessons.first_step),
        ]
    )


@app.cell
def _(mo, slider):
    print_beta = slider([0.5, 0.8, 0.9, 0.95, 0.99, 0.999], 0.9, "beta of these steps")
    print_momentum = slider([0.0, 0.5, 0.8, 0.9, 0.95], 0.9, "momentum of these steps")
    print_noise = slider([0.1, 0.2, 0.3, 0.5, 1.0, 2.0], 0.3, "noise of the gradient")
    mo.vstack(
        [
            mo.md("""
            ### Bias correction, momentum, centering

            - **Bias correction** divides v by 1 − betaᵗ at step t, which makes up for the start at 0: the first steps
              are lr, not lr / √(1 − beta).
            - **Momentum** adds up steps, with older ones fading: it runs faster where they agree, and swings less
              where they do not. In the usual form steady steps grow to lr / (1 − momentum); the form `"ema"` keeps
              them at lr.
            - **Centered** divides by the standard deviation of the gradient, √(v − m²) with m the mean gradient, so
              steps are longer where gradients agree.
            """),
            mo.hstack([print_beta, print_momentum, print_noise], justify="start", gap=2, wrap=True),
        ]
    )
    return print_beta, print_momentum, print_noise


@app.cell
def _(figures, lessons, mo, np, print_beta, print_momentum, print_noise, show):
    steady, rough = np.ones(60), 1 + print_noise.value * np.random.default_rng(0).normal(size=3000)
    beta_of = {"beta": print_beta.value}
    starting = {
        "plain": lessons.moves(steady, **beta_of),
        "bias correction": lessons.moves(steady, bias_correction=True, **beta_of),
    }
    pushed = {
        form: lessons.moves(steady, momentum=print_momentum.value, momentum_form=form, bias_correction=True, **beta_of)
        for form in ("lr_outside", "ema")
    }
    centering = {
        "plain": lessons.moves(rough, **beta_of).cumsum(),
        "centered": lessons.moves(rough, centered=True, **beta_of).cumsum(),
    }
    print_figure, print_panels = figures.panels(
        "steps from a cold start", "steps with momentum", "way under a noisy slope"
    )
    for print_panel, print_curves in zip(print_panels, (starting, pushed, centering), strict=True):
        figures.draw(print_panel, print_curves)
        print_panel.set_xlabel("step")
    print_panels[0].set_ylabel("in units of lr")
    mo.vstack(
        [
            show(print_figure),
            mo.md(f"""
            Gradients are 1 on the left and in the middle: the first plain step is {starting["plain"][0]:.3g} lr, the
            first corrected one {starting["bias correction"][0]:.3g} lr; with momentum {print_momentum.value:g} a step
            comes to {pushed["lr_outside"][-1]:.3g} lr, or with `"ema"` to {pushed["ema"][-1]:.3g} lr. On the right
            gradients are 1 with noise of {print_noise.value:g}: per step, plain RMSprop moves
            {centering["plain"][-1] / len(rough):.3g} lr and centered {centering["centered"][-1] / len(rough):.3g} lr.

            The centered form is often written so that rounding makes v − m² negative, and the weight NaN. This
            package keeps the variance itself, which cannot be negative.
            """),
        ]
    )


@app.cell
def _(mo, slider):
    start_epsilon = slider([1e-16, 1e-12, 1e-7], 1e-7, "epsilon of the training")
    start_lr = slider([0.0003, 0.001, 0.003, 0.01], 0.003, "lr of the training")
    mo.vstack(
        [
            mo.md("""
            ## 7. Initial weights

            RMSprop scales steps. It cannot repair a bad start. Here a real network, 64-32-32-10 with ReLU, learns the
            handwritten digits that scikit-learn ships, with RMSprop, from five different starts.
            """),
            mo.hstack([start_lr, start_epsilon], justify="start", gap=2),
        ]
    )
    return start_epsilon, start_lr


@app.cell
def _(LESSONS, figures, mo, np, show, start_epsilon, start_lr, starts, table):
    trainings = {start: starts.train(start, start_lr.value, start_epsilon.value) for start in starts.STARTS}
    start_figure, (start_panel,) = figures.panels("loss of the mini-batches, mean of 20")
    smooth = {start: np.convolve(training.losses, np.ones(20) / 20, "valid") for start, training in trainings.items()}
    figures.draw(start_panel, smooth)
    start_panel.axhline(np.log(10), color="0.6", linewidth=0.8)
    start_panel.set_yscale("log")
    start_panel.set_xlabel("step")
    mo.vstack(
        [
            show(start_figure),
            table(
                ("start", "first loss", "last loss", "accuracy on unseen digits", "kinds of hidden units"),
                [
                    (start, f"{t.losses[0]:.3g}", f"{t.losses[-1]:.3g}", f"{t.accuracy:.1%}", t.different)
                    for start, t in trainings.items()
                ],
            ),
            mo.md(f"""
            The grey line is ln 10 = {np.log(10):.3f}, the loss of a network that knows nothing and guesses among ten.

            - **kaiming**: random, of such a size that the signal keeps its size from layer to layer.
            - **zeros**: {LESSONS["zeros"]}.
            - **same** (every weight 0.1): gradients flow, but units that start as copies get the same gradients, so
              they stay copies for ever. Of 32 units, the table counts {trainings["same"].different} kind in the end.
              Only random weights break this symmetry.
            - **huge**: {LESSONS["huge"]}.
            - **tiny**: {LESSONS["tiny"]}. Move *epsilon* to 1e-16 to see it.
            """),
        ]
    )


@app.cell
def _(mo, slider):
    row_momentum = slider([0.0, 0.5, 0.9, 0.95], 0.9, "momentum of the rows")
    mo.vstack(
        [
            mo.md("""
            ## 8. Sparse gradients

            A table of words has a row for each word, and a sentence touches only a few rows; the gradients of all
            others are 0. To save time one hands over the touched rows alone. But in the dense rule a row with
            gradient 0 is not at rest: its v fades, and its momentum runs on. *Lazy* implementations forget that.
            *Exact* ones make up for it when the row is next needed, at the cost of the touched rows only.
            """),
            row_momentum,
        ]
    )
    return (row_momentum,)


@app.cell
def _(figures, lessons, mo, np, row_momentum, show, source):
    seen_rows = {mode: lessons.rare_row(row_momentum.value, mode) for mode in ("dense", "exact", "lazy")}
    row_figure, (row_panel,) = figures.panels("a row that is seldom touched")
    figures.draw(row_panel, {mode: seen for mode, (seen, _) in seen_rows.items()})
    row_panel.set_xlabel("step")
    whole_tables = {mode: whole for mode, (_, whole) in seen_rows.items()}
    apart = {mode: np.abs(whole - whole_tables["dense"]).max() for mode, whole in whole_tables.items()}
    dense_time, sparse_time = lessons.seconds_a_step(sparse=False), lessons.seconds_a_step(sparse=True)
    mo.vstack(
        [
            show(row_figure),
            mo.md(f"""
            In the end the table differs from the dense one by at most {apart["exact"]:.1g} (exact) and
            {apart["lazy"]:.2g} (lazy). A table of 20,000 rows of 16 numbers, of which a step touches 20, took
            {1e6 * dense_time:.0f} microseconds a step dense and {1e6 * sparse_time:.0f} exact, on the computer that
            made this page.
            """),
            source(lessons.rare_row),
        ]
    )


@app.cell
def _(mo, slider):
    short_beta = slider([0.0, 0.1, 0.3, 0.5, 0.9, 0.99, 0.999], 0.1, "beta, for rare gradients")
    mo.vstack(
        [
            mo.md("""
            ## 9. Where RMSprop loses

            - **Near the goal.** Steps are about lr however small the gradient, so at constant lr the weights hover.
              Let lr fall towards the end, or use Rprop where every step sees all the data. Then stop in time: once the
              training loss has vanished Rprop goes on by signs, and its loss on new data rises.
            - **On a round bowl.** If all directions are alike there is nothing to even out; plain gradient descent
              with a good lr arrives in a few steps, RMSprop needs distance / lr of them.
            - **Rare, large gradients.** A short memory makes light of them. Slopes of 3, −1, −1 by turns add up to
              uphill, so x should go to −1. Where beta is small RMSprop goes to +1 (S. Reddi and others, 2018).
            """),
            short_beta,
        ]
    )
    return (short_beta,)


@app.cell
def _(SURFACES, figures, lessons, mo, np, paths, short_beta, show):
    valley = SURFACES["quadratic valley"]
    hovering = {
        name: valley.loss(*paths.walk(valley, walker, paths.Settings(lr=0.05), 400).T)
        for name, walker in (("RMSprop, constant lr", "RMSprop, tutorial"), ("Rprop", "Rprop"))
    }
    bowl = valley._replace(loss=lambda x, y: (x**2 + y**2) / 2, slopes=lambda x, y: (x, y))
    to_bowl = {
        name: bowl.loss(*paths.walk(bowl, walker, paths.Settings(lr=0.05, sgd_lr=0.9), 100).T)
        for name, walker in (("SGD, lr = 0.9", "SGD"), ("RMSprop, lr = 0.05", "RMSprop, tutorial"))
    }
    astray = {f"beta = {beta}": lessons.wrong_way(beta) for beta in dict.fromkeys((short_beta.value, 0.99))}
    loss_figure, loss_panels = figures.panels("valley: the loss", "round bowl: the loss", "slopes of 3, −1, −1: x")
    for loss_panel, loss_curves in zip(loss_panels, (hovering, to_bowl, astray), strict=True):
        figures.draw(loss_panel, loss_curves)
        loss_panel.set_xlabel("step")
    for loss_panel in loss_panels[:2]:
        loss_panel.set_yscale("log")
        loss_panel.set_ylim(1e-14, 1e2)
    loss_panels[2].set_ylim(-1.1, 1.1)
    mean_hover = np.mean(hovering["RMSprop, constant lr"][-100:])
    mo.vstack(
        [
            show(loss_figure),
            mo.md(f"""
            In the valley RMSprop's loss stays about {mean_hover:.1g}, and Rprop's comes to
            {hovering["Rprop"][-1]:.1g}. On the bowl SGD is below 1e-6 after
            {np.argmax(to_bowl["SGD, lr = 0.9"] < 1e-6)} steps. With beta = {short_beta.value} the rare gradient leads
            to x = {astray[f"beta = {short_beta.value}"][-1]:.3g}.

            ## 10. On your own data

            `rmsprop train TABLE --target COLUMN` trains a network on a table and shows how every step went; `rmsprop
            explain A B` compares two dialects; `rmsprop learn --edit` opens this page with its code, to change.
            """),
        ]
    )


if __name__ == "__main__":
    app.run()
