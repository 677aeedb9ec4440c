import isNumber from "is-number";
console.log("built by node", isNumber(42));
