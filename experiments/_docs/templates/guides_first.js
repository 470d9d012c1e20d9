// Sections of guides whose heading has the words come before what pdoc finds.
(function () {
    const plain = window.pdocSearch;
    const sections = SECTIONS;
    const most = 5;
    const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
    const has = (text, word) => words(text).some((other) => other.startsWith(word));
    window.pdocSearch = (term) => {
        const asked = words(term);
        const fits = (section) =>
            asked.some((word) => has(section.heading, word)) &&
            asked.every((word) => has(section.fullname, word));
        const first = asked.length ? sections.filter(fits).slice(0, most) : [];
        const guides = first.map((doc) => ({ ref: doc.fullname, score: 1, doc }));
        return [...guides, ...plain(term)];
    };
})();
