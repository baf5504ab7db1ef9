"use strict";
(() => {
  const page = 20;
  const byId = (id) => document.getElementById(id);

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function readSamples() {
    const data = JSON.parse(byId("samples-data").textContent);
    return data.rows.map((row) => {
      const sample = Object.fromEntries(data.columns.map((name, place) => [name, row[place]]));
      sample.prompt = data.prompts[sample.prompt];
      const texts = [sample.response, sample.prompt, sample.problem, sample.truth, sample.extracted, sample.note];
      sample.searched = texts.join("\n").toLowerCase();
      return sample;
    });
  }

  function block(parent, label, text) {
    parent.append(element("p", "label", label));
    const pre = element("pre", "", text);
    pre.dir = "auto";
    parent.append(pre);
  }

  function render(sample) {
    const article = element("article", "sample");
    const facts = element("p", "facts");
    const told = { run: sample.run, step: sample.step, reward: sample.reward, problem: sample.problem,
      truth: sample.truth, extracted: sample.extracted };
    for (const [name, value] of Object.entries(told)) {
      if (value === null || value === "") continue;
      const fact = element("span");
      fact.append(element("b", "", name), ` ${value}`);
      facts.append(fact, " ");
    }
    facts.append(element("span", "", `${sample.kind}; ${sample.note}`));
    article.append(facts);
    block(article, "Response", sample.response);
    const asked = element("details");
    asked.append(element("summary", "", "Prompt"));
    block(asked, "as the model was asked", sample.prompt);
    article.append(asked);
    return article;
  }

  function startBrowser() {
    const samples = readSamples();
    const fields = Object.fromEntries(
      ["run", "kind", "reward", "from", "to", "text"].map((name) => [name, byId(`filter-${name}`)]));
    const list = byId("sample-list"), count = byId("sample-count"), more = byId("sample-more");
    let found = [], shown = 0;

    for (const name of ["run", "kind"]) {
      for (const value of new Set(samples.map((sample) => sample[name]))) {
        const option = element("option", "", value);
        option.value = value;
        fields[name].append(option);
      }
    }

    function matches(sample) {
      const { run, kind, reward, from, to, text } = fields;
      if (run.value && sample.run !== run.value) return false;
      if (kind.value && sample.kind !== kind.value) return false;
      if (reward.value === "some" && !(sample.reward > 0)) return false;
      if (reward.value === "none" && (sample.reward === null || sample.reward > 0)) return false;
      if (from.value !== "" && (sample.step === null || sample.step < Number(from.value))) return false;
      if (to.value !== "" && (sample.step === null || sample.step > Number(to.value))) return false;
      return sample.searched.includes(text.value.toLowerCase());
    }

    function showMore() {
      list.append(...found.slice(shown, shown + page).map(render));
      shown = Math.min(shown + page, found.length);
      more.hidden = shown === found.length;
      count.textContent = `${found.length} of ${samples.length} samples, ${shown} shown`;
    }

    function filter() {
      found = samples.filter(matches);
      shown = 0;
      list.replaceChildren();
      showMore();
    }

    for (const field of Object.values(fields)) field.addEventListener("input", filter);
    more.addEventListener("click", showMore);
    byId("browser").hidden = false;
    filter();
  }

  function copyKeys() {
    document.addEventListener("click", async (event) => {
      const key = event.target.closest("code.full");
      if (!key || !navigator.clipboard) return;
      await navigator.clipboard.writeText(key.textContent).then(
        () => key.classList.add("copied"), () => key.classList.remove("copied"));
    });
  }

  if (byId("samples-data")) startBrowser();
  copyKeys();
})();
