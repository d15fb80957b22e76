"""Comet's Python panel for a sweep: ranked runs, parallel coordinates, importances, learning curves.

Comet runs this file by itself, on CPython 3.9 with comet_ml, streamlit, pandas and plotly. Anywhere else:
COMET_WORKSPACE=... COMET_PROJECT_NAME=... streamlit run search/panels/ranking.py
"""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from comet_ml import API

NUM_CURVES = 5
MIN_LOG_RATIO = 20  # of the largest to the smallest value, for a logarithmic axis
NUM_GROUPS = 6  # quantiles of a numeric parameter, for its importance
MARGIN = {"l": 10, "r": 10, "t": 10, "b": 40}
ORDER = {"complete": 0, "pruned": 1, "running": 2, "failed": 3}


@st.cache_data(ttl=60, show_spinner="Reading the runs")
def load(keys):
    """Return one row per run of a sweep: name, state, score and parameters."""
    experiments = [experiment for experiment in API().get_panel_experiments() if experiment.id in keys]

    def row(experiment):
        others = experiment.get_others_summary()
        return {"key": experiment.id, **{other["name"]: other["valueCurrent"] for other in others}}

    with ThreadPoolExecutor(8) as threads:
        rows = list(threads.map(row, experiments))
    return pd.DataFrame([row for row in rows if "sweep" in row and "trial" in row])


@st.cache_data(ttl=60, show_spinner=False)
def load_curves(keys, metric):
    """Return {key: (epochs, values)} of a metric."""
    curves = {}
    for key, found in API().get_metrics_for_chart(list(keys), [metric], []).items():
        for curve in found.get("metrics") or []:
            curves[key] = (curve["steps"], [float(value) for value in curve["values"]])
    return curves


def rank(runs, direction):
    """Order runs by state, then by score; mark the baseline and the champion."""
    runs = runs.reindex(columns=runs.columns.union(["promoted", "reason", "optimizer_metric_value"]))
    runs["score"] = pd.to_numeric(runs["optimizer_metric_value"], errors="coerce")
    runs["trial"] = pd.to_numeric(runs["trial"])
    runs["order"] = runs["state"].map(ORDER).fillna(len(ORDER))
    runs = runs.sort_values(["order", "score", "trial"], ascending=[True, direction == "minimum", True])
    champion = runs["promoted"].dropna().max()
    marks = (runs["baseline"].astype(str) == "True").map({True: "baseline", False: ""})
    runs["mark"] = marks.where(runs["promoted"].isna() | (runs["promoted"] != champion), "champion")
    runs.insert(0, "rank", range(1, len(runs) + 1))
    return runs.set_index("key")


def importances(parameters, score):
    """Return the share of the variance of the scores' ranks that each parameter explains, 0 to 1.

    Epsilon squared: the share between groups, corrected for chance (T. L. Kelley, PNAS 21, 1935). The groups of a
    categorical parameter are its values, those of a numeric one its quantiles.
    """
    ranks = score.rank()
    explained = {}
    for name, values in parameters.items():
        numbers = pd.to_numeric(values, errors="coerce")
        if numbers.notna().all() and numbers.nunique() > NUM_GROUPS:
            groups = pd.qcut(numbers.rank(method="first"), NUM_GROUPS, labels=False)
        else:
            groups = values.astype(str)
        total = len(ranks)
        if groups.nunique() < 2 or total <= groups.nunique() or ranks.var() == 0:
            continue
        within = (ranks - ranks.groupby(groups).transform("mean")).var(ddof=0) / ranks.var(ddof=0)
        explained[name] = max(0.0, 1 - within * (total - 1) / (total - groups.nunique()))
    return pd.Series(explained, dtype=float).sort_values()


def searched(parameters, is_baseline):
    """Leave out the parameters that are the same in all runs of the space; the baseline may lie outside it."""
    texts = parameters[~is_baseline].astype(str)
    return parameters[[name for name in parameters if len(set(texts[name])) > 1]]


def show_ranking(runs, parameters, metric):
    table = (
        runs[["rank", "trial", "mark", "state", "score", "reason"]].rename(columns={"score": metric}).join(parameters)
    )
    st.caption("Best first. Only complete runs have {}.".format(metric))
    st.dataframe(table.reset_index(drop=True), hide_index=True, width="stretch")


def show_coordinates(runs, parameters, metric):
    """Draw each complete run as a line through its parameters, coloured by its score."""
    axes = []
    for name, values in parameters.items():
        numbers = pd.to_numeric(values, errors="coerce")
        if numbers.notna().all() and numbers.min() > 0 and numbers.max() > MIN_LOG_RATIO * numbers.min():
            exponents = [math.log10(number) for number in numbers]
            marks = list(range(math.ceil(min(exponents)), math.floor(max(exponents)) + 1))
            ticks = {"tickvals": marks, "ticktext": ["1e{}".format(mark) for mark in marks]}
            axes.append({"label": name, "values": exponents, **ticks})
        elif numbers.notna().all():
            axes.append({"label": name, "values": numbers})
        else:
            codes, texts = pd.factorize(values.astype(str), sort=True)
            axes.append({"label": name, "values": codes, "tickvals": list(range(len(texts))), "ticktext": list(texts)})
    axes.append({"label": metric, "values": runs["score"]})
    line = {"color": runs["score"], "colorscale": "Viridis", "showscale": True}
    figure = go.Figure(go.Parcoords(line=line, dimensions=axes))
    st.plotly_chart(figure.update_layout(height=380, margin={"l": 60, "r": 40, "t": 50, "b": 30}), key="coordinates")


def show_importances(runs, parameters):
    explained = importances(parameters, runs["score"])
    figure = go.Figure(go.Bar(x=explained.to_numpy(), y=list(explained.index), orientation="h"))
    figure.update_layout(height=120 + 28 * len(explained), margin=MARGIN)
    figure.update_xaxes(title="share of the ranks' variance that one parameter explains", range=[0, 1])
    st.plotly_chart(figure, key="importances")


def show_curves(runs, metric):
    """Draw the learning curves of the best runs and of the baseline."""
    chosen = runs[(runs["rank"] <= NUM_CURVES) | (runs["mark"] != "")]
    curves = load_curves(tuple(chosen.index), metric)
    figure = go.Figure()
    for key, run in chosen.iterrows():
        if key in curves:
            epochs, values = curves[key]
            name = "{}. trial {} {}".format(run["rank"], run["trial"], run["mark"]).strip()
            line = {"dash": "dot"} if run["mark"] == "baseline" else {}
            figure.add_scatter(x=epochs, y=values, name=name, mode="lines+markers", line=line)
    figure.update_layout(height=380, margin=MARGIN, xaxis={"title": "epoch", "dtick": 1}, yaxis_title=metric)
    st.plotly_chart(figure, key="curves")


def main():
    st.set_page_config(layout="wide")
    experiments = API().get_panel_experiments()
    runs = load(tuple(experiment.id for experiment in experiments or []))
    if runs.empty:
        st.info(
            "These experiments contain no run of a sweep. Create some with `python run_sweep.py --tracking online`."
        )
        return
    names = sorted(runs["sweep"].unique())
    name = st.selectbox("sweep", names) if len(names) > 1 else names[0]
    runs = runs[runs["sweep"] == name]
    metric = runs["optimizer_metric"].iloc[0]
    runs = rank(runs, runs["optimizer_objective"].iloc[0])
    parameters = pd.DataFrame([json.loads(text) for text in runs["optimizer_parameters"]], index=runs.index)
    complete = runs["state"] == "complete"
    st.subheader("{}: {} runs, {} complete".format(name, len(runs), complete.sum()))
    show_ranking(runs, parameters, metric)
    if complete.sum() > 1:
        st.subheader("Parameters of the complete runs")
        varied = searched(parameters[complete], runs.loc[complete, "baseline"].astype(str) == "True")
        show_coordinates(runs[complete], varied, metric)
        show_importances(runs[complete], varied)
    st.subheader("Learning curves")
    show_curves(runs, metric.removeprefix("best_"))


main()
