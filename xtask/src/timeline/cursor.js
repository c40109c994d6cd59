document.querySelectorAll("svg[data-from]").forEach(function (svg) {
  var space = "http://www.w3.org/2000/svg";
  var line = svg.appendChild(document.createElementNS(space, "line"));
  var text = svg.appendChild(document.createElementNS(space, "text"));
  line.setAttribute("class", "cursor");
  var box = svg.viewBox.baseVal, from = +svg.dataset.from, to = +svg.dataset.to, left = 132, right = 16;
  svg.addEventListener("mousemove", function (event) {
    var x = (event.clientX - svg.getBoundingClientRect().left) * box.width / svg.clientWidth;
    x = Math.min(Math.max(x, left), box.width - right);
    line.setAttribute("x1", x); line.setAttribute("x2", x);
    line.setAttribute("y1", 0); line.setAttribute("y2", box.height - 22);
    text.setAttribute("x", Math.min(x + 4, box.width - 60)); text.setAttribute("y", box.height - 24);
    text.textContent = (from + (x - left) / (box.width - right - left) * (to - from)).toFixed(3) + " s";
  });
  svg.addEventListener("mouseleave", function () { line.setAttribute("x2", line.getAttribute("x1")); text.textContent = ""; line.setAttribute("y2", 0); });
});
