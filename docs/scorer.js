// How the search ranks pages: how to do something comes before how it is built. The numbers are Sphinx's, but for score.
const HOW_TO = [
  "tutorial", "quickstart", "receivers", "moving", "shapes", "secrets", "deploy-systemd", "deploy-docker", "deploy-kubernetes",
  "clusters", "operating", "page", "runbooks", "troubleshooting", "upgrading", "capture",
];
const REFERENCE = ["brokers", "configuration", "events", "api-http", "metrics", "sizing", "glossary", "delivery"];

var Scorer = {
  score: (result) => {
    const [docname, , , , score] = result;
    if (HOW_TO.includes(docname)) return score + 20;
    return REFERENCE.includes(docname) ? score + 10 : score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
